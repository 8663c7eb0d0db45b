from predictions.cli.commands import main

main()
